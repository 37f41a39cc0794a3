"""`python -m fovea`: the command line."""

from fovea.cli.main import main

if __name__ == "__main__":
    main()
