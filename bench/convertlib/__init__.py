"""What `bench/convert.py` is made of: a corpus of runs, ours and the others' converters."""
