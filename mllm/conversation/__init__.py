"""Conversations: schema, prompt formats, and rendering into tokens with a supervision mask."""
