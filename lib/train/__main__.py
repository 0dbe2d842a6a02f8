"""`python -m lib.train --preset NAME --lam 0.001 ...`; `--help` lists every option."""
# PYTHON_ARGCOMPLETE_OK

from lib.train.arguments import main

if __name__ == "__main__":
    main()
