"""Studies of this project and their pages; they need a clone and are not installed."""
