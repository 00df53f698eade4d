"""Who is who on a broker: a private authority, a certificate for each client, what each may say; updates."""
