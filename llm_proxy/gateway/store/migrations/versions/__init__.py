"""The steps, oldest first by their names. One that has been released is never edited: another one follows it."""
