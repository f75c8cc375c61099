"""The `preview` command: an HTML page that shows the images of a data set as training will see them."""
