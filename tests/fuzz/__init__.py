"""Coverage-guided fuzzing of everything that reads a stranger's file. ``make fuzz`` runs it for long, ``test_fuzz.py`` for a moment."""
