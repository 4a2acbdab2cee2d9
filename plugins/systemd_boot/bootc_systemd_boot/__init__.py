"""systemd_boot plugin."""
