"""EDLM models: the files of this folder also travel with every saved checkpoint."""
