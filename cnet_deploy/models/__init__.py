"""Networks: their architecture as plain numbers, and as torch modules. Nothing here reads or writes files."""
