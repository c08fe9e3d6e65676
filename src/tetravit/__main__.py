"""`python -m tetravit`, and the `tetravit` command."""

from tetravit.cli import main

if __name__ == "__main__":
    main()
