"""Coefficients of minimax polynomials for the sign function, to be composed.

Row k is (ℓₖ, a, b, c). Among the odd polynomials of degree 5, a x + b x³ + c x⁵ comes closest to a
constant on [ℓₖ, 1], relative to that constant, and it is scaled so that its largest value there is
1. Its least is ℓₖ₊₁, where the next row takes over. Composed from row k on, they are the best
approximation of sign(x) on [ℓₖ, 1] among all compositions of as many odd quintics (Lee, Lee, No,
Kim, "Minimax approximation of sign function by composite polynomial for homomorphic comparison",
IEEE Transactions on Dependable and Secure Computing 19, 2022; Amsel, Persson, Musco, Gower, "The
Polar Express: optimal matrix sign methods and their application to the Muon algorithm", 2025).

Solved by Remez's exchange at 50 digits, from ℓ₀ = 1e-8 to where the least value is 1 − 2.7e-10,
and rounded to float64; a test checks the equioscillation.
"""

SIGN_QUINTICS: tuple[tuple[float, float, float, float], ...] = (
    (1e-08, 4.257151097200054, -12.640874917834122, 9.383723820634069),
    (4.2571510972000524e-08, 4.257150967810669, -12.640873827946196, 9.383722860135528),
    (1.8123334913561354e-07, 4.257150416980497, -12.640869188129223, 9.383718771148727),
    (7.715376278433738e-07, 4.257148072013078, -12.640849435738893, 9.383701363725814),
    (3.2845499248531573e-06, 4.257138089130142, -12.640765347041294, 9.383627257911153),
    (1.3982782590294002e-05, 4.257095590448372, -12.640407372613595, 9.383311782165222),
    (5.952604207278138e-05, 4.256914666407941, -12.638883491467721, 9.381968825059781),
    (0.0002533972788670259, 4.256144432357404, -12.632397370658493, 9.37625293830109),
    (0.0010784952120866586, 4.25286520403479, -12.604808108609436, 9.351942904574647),
    (0.004586678948065947, 4.238901806189225, -12.487782545648146, 9.248880739458922),
    (0.019441276714712637, 4.179463172742434, -11.997797863895666, 8.818334691153233),
    (0.08116596367763855, 3.930748396434445, -10.08722648177931, 7.1564780853448635),
    (0.3136744064924594, 3.094987886934515, -5.16430063819586, 3.0693127512613443),
    (0.8207534456721217, 2.069665007468255, -1.67081953828916, 0.6011545308209052),
    (0.9988042628249837, 1.8761220516361405, -1.2522451106981989, 0.37612305906205834),
)
