"""The command line of the project; see `style_distil.command`."""
