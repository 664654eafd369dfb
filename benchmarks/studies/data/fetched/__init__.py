"""Pairs from archives that are fetched from npm and Debian, those of the table and the diagonal, and their features."""
