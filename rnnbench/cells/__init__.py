"""The equations of recurrent cells, each written once over `xp`, and how cells make a network."""
