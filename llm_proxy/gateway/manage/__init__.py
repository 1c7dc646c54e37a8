"""What people do with the gateway: sign in, make keys and aliases, look at usage; a module per kind of thing."""
