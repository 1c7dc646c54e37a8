"""Serves a team: who may call which model, with whose key, in whichever API's words."""
