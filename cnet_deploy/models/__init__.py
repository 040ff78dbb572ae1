"""Networks: their shape in plain numbers, and in torch. No file is read or written here."""
