"""Model + inputs -> files for other runtimes, run and compared with the model before they get their name.

Open `exporting.py` first; `runtimes.py` opens the files.
"""
