"""The commands of `inpaint-data`: one file per command, and the sheets and tables that they show."""
