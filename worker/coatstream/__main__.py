"""`python -m coatstream` is the same as `coatstream`."""

from coatstream.cli import main

if __name__ == "__main__":
    main()
