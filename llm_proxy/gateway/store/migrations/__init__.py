"""How a store comes to have the tables of `schema`: one step after the other, each made once."""
