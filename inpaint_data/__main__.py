"""`python -m inpaint_data`: the command."""

from inpaint_data.commands.main import main

main()
