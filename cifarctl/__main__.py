"""`python -m cifarctl`: the same command as `cifarctl`."""

from cifarctl.entry import main

if __name__ == "__main__":
    main()
