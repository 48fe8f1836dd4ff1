"""`python -m forwardpass` is the command `forwardpass`."""

from forwardpass.cli import main

if __name__ == "__main__":
    main()
