"""How bytes move between ranks. A transport knows no shapes, models or policy."""
