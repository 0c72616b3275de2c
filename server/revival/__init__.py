"""Revival: what slow silos know is distilled into the head, without data. The only rooms of the server that know torch."""
