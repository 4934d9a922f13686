"""Cache latents and masks: `python scripts/cache_latents.py --help`. The same as `inpaint-data cache`."""

import sys

from inpaint_data.commands.main import main

if __name__ == "__main__":
    main(["cache", *sys.argv[1:]])
