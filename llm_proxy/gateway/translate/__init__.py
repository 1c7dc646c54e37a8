"""From one API to another and back, through one form that holds what all of them can say. Pure."""
