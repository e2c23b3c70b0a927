"""What runs beside a program that nobody trusts: standard library only, in a bare interpreter of its own."""
