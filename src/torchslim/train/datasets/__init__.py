"""A specification -> `Data`: pictures and targets of every task, from files, tables, other libraries or drawn.

`registry.py` first: `load_data` and the table of kinds; each kind has a file. `request.py` is what a kind is asked for,
`items.py` makes `Data` of samples and a function that reads one, `augmentation.py` brings pictures and their targets to
one size, `pictures.py` and `files.py` read and find files of any kind.
"""
