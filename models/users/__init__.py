"""Users, what their roles allow, and whose credits they spend."""
