"""`python -m precdoctor` is the command `precdoctor`."""

from precdoctor.cli import main

if __name__ == "__main__":
    main(prog_name="precdoctor")
