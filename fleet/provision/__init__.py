"""Who is who on a broker: a private authority, a certificate for each client, and what each may say."""
