"""Drawn pictures and their names, from packages to frozen features and their split.

- two collections, `installed` and `fetched`, each with its `pairs` and their `features`;
- `packages`: where installed packages lie, how archives are fetched and read;
- `encoders`, `cache`: the frozen encoders, and what they made kept on disk;
- `split`: which concepts train, validate and test, and what is cleared away; `noise`: captions that went to another picture.
"""
