"""One file a verb: each strings the rooms below together, and knows no terminal."""
