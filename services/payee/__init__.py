"""Payee codes: one merchant code that many payment platforms answer for, out of encrypted records on the chain."""
