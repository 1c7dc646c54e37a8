// Home: says that there is something new, and leaves the list alone.
