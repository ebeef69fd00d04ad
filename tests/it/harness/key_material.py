"""Generates keys, tokens and certificates with PyJWT and cryptography.

keys DIR                               private keys, and the key set of their public keys, jwks.json
token DIR KEY ALGORITHM CLAIMS HEADER  a JSON Web Token, signed with one of the keys
ca DIR NAME                            a certificate authority
certificate DIR CA NAME NAMES FROM TO  a certificate for comma-separated names, valid from and to these offsets from now in seconds
"""

import base64
import datetime
import hashlib
import hmac
import ipaddress
import json
import pathlib
import sys

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


def save(path, key):
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(PEM, form, serialization.NoEncryption()))


def load(path):
    return serialization.load_pem_private_key(path.read_bytes(), None)


def keys(directory):
    made = {
        "rsa": (rsa.generate_private_key(65537, 2048), jwt.algorithms.RSAAlgorithm),
        "ec": (ec.generate_private_key(ec.SECP256R1()), jwt.algorithms.ECAlgorithm),
        "ed": (ed25519.Ed25519PrivateKey.generate(), jwt.algorithms.OKPAlgorithm),
        "other": (rsa.generate_private_key(65537, 2048), jwt.algorithms.RSAAlgorithm),
    }
    published = []
    for name, (key, form) in made.items():
        save(directory / f"{name}.pem", key)
        if name != "other":
            published.append({**json.loads(form.to_jwk(key.public_key())), "kid": name, "use": "sig"})
    (directory / "jwks.json").write_text(json.dumps({"keys": published}))


def token(directory, name, algorithm, claims, header):
    claims, header = json.loads(claims), json.loads(header)
    key = load(directory / f"{name}.pem")
    if algorithm == "none":
        return jwt.encode(claims, None, "none", header)
    if algorithm == "HS256":
        # Algorithm confusion: accepted by a verifier that uses the public key as an HMAC secret.
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        secret = key.public_key().public_bytes(PEM, form)
        part = lambda value: base64.urlsafe_b64encode(value).rstrip(b"=")
        head = part(json.dumps({"alg": "HS256", "typ": "JWT", **header}).encode())
        signed = head + b"." + part(json.dumps(claims).encode())
        return (signed + b"." + part(hmac.new(secret, signed, hashlib.sha256).digest())).decode()
    return jwt.encode(claims, key, algorithm, header)


def build(subject, issuer, public, signer, start, end, extensions):
    now = datetime.datetime.now(datetime.timezone.utc)
    named = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    builder = x509.CertificateBuilder().subject_name(named(subject)).issuer_name(named(issuer)).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now + datetime.timedelta(seconds=start))
    builder = builder.not_valid_after(now + datetime.timedelta(seconds=end))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256()).public_bytes(PEM)


def ca(directory, name):
    key = ec.generate_private_key(ec.SECP256R1())
    save(directory / f"{name}.key", key)
    basic = [(x509.BasicConstraints(ca=True, path_length=0), True)]
    (directory / f"{name}.pem").write_bytes(build(name, name, key.public_key(), key, -3600, 86400, basic))


def alternative(name):
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def certificate(directory, authority, name, names, start, end):
    key = ec.generate_private_key(ec.SECP256R1())
    save(directory / f"{name}.key", key)
    names = x509.SubjectAlternativeName([alternative(one) for one in names.split(",")])
    signer = load(directory / f"{authority}.key")
    made = build(name, authority, key.public_key(), signer, int(start), int(end), [(names, False)])
    (directory / f"{name}.pem").write_bytes(made)


command, directory, *rest = sys.argv[1:]
result = {"keys": keys, "token": token, "ca": ca, "certificate": certificate}[command](pathlib.Path(directory), *rest)
print(result or "")
