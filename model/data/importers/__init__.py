"""One module per source; each has `read(path, ...) -> Dataset`, and `recognise(path)` where its files tell it apart."""
