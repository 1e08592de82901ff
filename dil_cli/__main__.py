"""`python -m dil_cli` is `dil`."""

from dil_cli.main import main

if __name__ == "__main__":
    main()
