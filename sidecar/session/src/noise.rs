//! `snow` with chance from the caller's seed.

use rand_chacha::{
    ChaCha12Rng,
    rand_core::{RngCore, SeedableRng},
};
use snow::{
    Builder, Error,
    params::{CipherChoice, DHChoice, HashChoice, NoiseParams},
    resolvers::{CryptoResolver, DefaultResolver},
    types::{Cipher, Dh, Hash, Random},
};

pub(crate) const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";

struct Seeded {
    seed: [u8; 32],
    default: DefaultResolver,
}

struct Rng(ChaCha12Rng);

impl Random for Rng {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        self.0.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Rng(ChaCha12Rng::from_seed(self.seed))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        self.default.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        self.default.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        self.default.resolve_cipher(choice)
    }
}

/// A builder of our pattern whose ephemeral keys come from `rng`.
pub(crate) fn builder<'a>(rng: &mut impl RngCore) -> Builder<'a> {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    let params: NoiseParams = PATTERN.parse().expect("a pattern that snow knows");
    Builder::with_resolver(params, Box::new(Seeded { seed, default: DefaultResolver }))
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// The published vector of this pattern (cacophony's `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s`).
    const PROLOGUE: &str = "4a6f686e2047616c74";
    const PSK: &str = "54686973206973206d7920417573747269616e20706572737065637469766521";
    const I_STATIC: &str = "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1";
    const I_EPHEMERAL: &str = "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a";
    const R_STATIC: &str = "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893";
    const R_PUBLIC: &str = "31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62";
    const R_EPHEMERAL: &str = "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b";
    const HASH: &str = "f5191b875290abcd41347ac3622d9679688a7e980229cb937ef748336cfde0e5";
    const MESSAGES: [(&str, &str); 4] = [
        (
            "4c756477696720766f6e204d69736573",
            "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944001e21de9f98ddd8e2ad57527207feb5\
             6253c9c94a9e496782ecfcb2a75fbcaf1b52948cc48daefe660c62119ab5000980c84831215f2441eba616548e832985\
             464cf17e51ee93109008399a21f7e13f",
        ),
        (
            "4d757272617920526f746862617264",
            "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843cb765f2caef0751b8f007572dab03222\
             17755c0632f365717edbf34d33e87a",
        ),
        ("462e20412e20486179656b", "8153ca9833bc3c1b91a7e66e5f4d4f5b59bf9e64c2f20d15f0bba7"),
        ("4361726c204d656e676572", "07af0c9c86e1b4e80f36b04ff7688d51141af3debd0332f0a705ef"),
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        HEXLOWER.decode(hex.as_bytes()).unwrap()
    }

    fn key(hex: &str) -> [u8; 32] {
        bytes(hex).try_into().unwrap()
    }

    #[test]
    fn the_published_vector_of_the_pattern_is_met() {
        let prologue = bytes(PROLOGUE);
        let (psk, i_static, r_static) = (key(PSK), bytes(I_STATIC), bytes(R_STATIC));
        let (r_public, i_ephemeral, r_ephemeral) =
            (bytes(R_PUBLIC), bytes(I_EPHEMERAL), bytes(R_EPHEMERAL));
        let start = |secret, ephemeral| {
            builder(&mut ChaCha12Rng::from_seed([0; 32]))
                .prologue(&prologue)
                .and_then(|builder| builder.local_private_key(secret))
                .unwrap()
                .fixed_ephemeral_key_for_testing_only(ephemeral)
        };
        let mut initiator = start(&i_static, &i_ephemeral)
            .remote_public_key(&r_public)
            .and_then(|builder| builder.build_initiator())
            .unwrap();
        let mut responder = start(&r_static, &r_ephemeral).build_responder().unwrap();
        // As the handshake does: the key comes in when it is known, and no sooner.
        initiator.set_psk(2, &psk).unwrap();
        responder.set_psk(2, &psk).unwrap();

        let mut buf = [0; 512];
        for (number, (payload, expected)) in MESSAGES[..2].iter().enumerate() {
            let (from, to) = if number == 0 {
                (&mut initiator, &mut responder)
            } else {
                (&mut responder, &mut initiator)
            };
            let len = from.write_message(&bytes(payload), &mut buf).unwrap();
            assert_eq!(HEXLOWER.encode(&buf[..len]), *expected, "message {number}");
            let mut plain = [0; 512];
            let read = to.read_message(&buf[..len], &mut plain).unwrap();
            assert_eq!(plain[..read], bytes(payload));
        }
        assert_eq!(HEXLOWER.encode(initiator.get_handshake_hash()), HASH);

        // The keys of the session are those of the vector's transport: our own AEAD seals its messages.
        let (to_responder, to_initiator) = initiator.dangerously_get_raw_split();
        for (key, (payload, expected)) in [to_responder, to_initiator].iter().zip(&MESSAGES[2..]) {
            use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
            let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap());
            let mut sealed = bytes(payload);
            let nonce = Nonce::assume_unique_for_key([0; 12]);
            key.seal_in_place_append_tag(nonce, Aad::empty(), &mut sealed).unwrap();
            assert_eq!(HEXLOWER.encode(&sealed), *expected);
        }
    }
}
