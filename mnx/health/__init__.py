"""What keeps a job of many processes understandable when something goes wrong."""
