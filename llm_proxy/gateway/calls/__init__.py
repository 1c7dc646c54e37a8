"""The API that clients call: a request in one provider's words, carried to whichever model serves."""
