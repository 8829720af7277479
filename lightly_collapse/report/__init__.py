"""Pages and figures that show the collapse."""
