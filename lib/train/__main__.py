"""`python -m lib.train --preset NAME --lam 0.001 ...`; `--help` lists every option."""

from lib.train.arguments import main

if __name__ == "__main__":
    main()
