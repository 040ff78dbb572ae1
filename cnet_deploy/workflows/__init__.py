"""What the commands do, one file per verb. Nothing here reads options or prints."""
