"""An exported file and its manifest, as they lie on a disk."""
