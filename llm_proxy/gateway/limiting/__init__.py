"""How much may be used, by whom: rules, meters, and their count. Leaves out what was used (`usage`)."""
