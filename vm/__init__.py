"""Virtual machines that install, boot, upgrade and roll back for real."""
