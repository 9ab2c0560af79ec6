"""Captions and transcripts of videos to the text that was spoken."""
