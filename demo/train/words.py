"""The English words of the captions: other names of things, and ways to say sizes, places and colours; fillers."""

# Other names, singular; a name that means two of the things is left out.
_NAMES = """
cat face: cat, kitten, kitty, pussycat, cat's face
dog face: dog, puppy, doggy, dog's face
rabbit face: rabbit, bunny, hare
fox: fox face, red fox
bear: brown bear, bear face, teddy
panda: panda bear, panda face
koala: koala bear
tiger face: tiger
lion: lion face, lion head
cow face: cow, cattle
pig face: pig, piglet, piggy
frog: toad, frog face
monkey face: monkey, ape, chimp
chick: baby chicken, chicken, baby bird
penguin: baby penguin
owl: night owl
parrot: macaw, parakeet
duck: mallard, drake
swan: white swan
turtle: tortoise
snake: serpent, viper
whale: blue whale, spouting whale
dolphin: bottlenose dolphin
tropical fish: fish, reef fish
octopus: squid, kraken
crab: red crab, crayfish
snail: garden snail, slug
butterfly: moth
bee: honeybee, bumblebee, wasp
ladybug: ladybird, lady beetle, beetle
elephant: elephant face
red apple: apple
green apple: granny smith
pear: green pear
lemon: citron
watermelon: slice of watermelon, water melon, melon
grapes: bunch of grapes, grape
strawberry: ripe strawberry
cherries: cherry, pair of cherries
pineapple: ananas
avocado: half an avocado
tomato: ripe tomato
eggplant: aubergine
carrot: orange carrot
corn: ear of corn, maize, corn cob, sweetcorn
broccoli: head of broccoli
pepper: chili, chilli, hot pepper, chili pepper
bread: loaf of bread, loaf, bread loaf
cheese: piece of cheese, wedge of cheese, slice of cheese
hamburger: burger, cheeseburger
pizza: slice of pizza, pizza slice
hot dog: hotdog, sausage
fried egg: egg, egg in a pan, frying pan
doughnut: donut
cookie: biscuit, chocolate chip cookie
cake: birthday cake
ice cream: ice cream cone, soft ice, gelato
tree: leafy tree, oak tree, oak
pine tree: fir tree, fir, pine, conifer, spruce
palm tree: palm, coconut tree
cactus: cactus plant, saguaro
sunflower: yellow sunflower
tulip: tulip flower
rose: red rose
cherry blossom: pink blossom, blossom, sakura
clover: four leaf clover, four-leaf clover, shamrock
maple leaf: autumn leaf, leaf
mushroom: toadstool, red mushroom
seedling: sprout, sapling, young plant
car: automobile, auto, red car
bus: school bus, coach
fire engine: fire truck, firetruck
tractor: farm tractor
train: locomotive, steam train, steam engine
airplane: aeroplane, plane, aircraft, jet
helicopter: chopper
rocket: rocket ship, spaceship, space rocket
flying saucer: ufo, UFO
sailboat: sailing boat, boat, sailing ship, ship
heart: red heart, love heart
star: yellow star, golden star
sun: sunshine
moon: crescent moon, half moon, crescent
rainbow: colorful rainbow
cloud: white cloud
snowflake: flake of snow, snow crystal
fire: flame, flames, campfire
drop of water: water drop, droplet, raindrop, waterdrop
house: home, cottage, little house
castle: fortress, palace
tent: camping tent
umbrella: parasol, brolly
crown: king's crown, golden crown
top hat: hat, magician's hat
gem: diamond, jewel, gemstone
key: golden key, door key
lock: padlock
bell: golden bell
gift: present, gift box, wrapped present
balloon: red balloon, party balloon
trophy: cup, gold cup, golden trophy
soccer ball: football, soccerball
basketball: basket ball
guitar: electric guitar
camera: photo camera
telephone: phone, red telephone
television: tv, TV, telly, tv set
alarm clock: clock
light bulb: lightbulb, bulb, lamp
book: red book, closed book
scissors: pair of scissors
hammer: claw hammer
anchor: ship's anchor
red envelope: envelope
smiling face: smiley, happy face, smiley face, smile
heart eyes face: heart eyes, face with heart eyes, face in love
sunglasses face: face with sunglasses, cool face, smiley with sunglasses
crying face: sad face, face in tears, crying smiley
angry face: mad face, angry smiley, furious face
clown: clown face
robot: robot face, android
alien: alien face, extraterrestrial
ghost: spook, white ghost
skull: human skull
pumpkin: jack-o'-lantern, halloween pumpkin
snowman: snow man
devil: purple devil, demon, imp
"""
OTHER_NAMES = {
    thing: tuple(name.strip() for name in names.split(","))
    for thing, names in (line.split(": ") for line in _NAMES.strip().split("\n"))
}
PLURALS = ("grapes", "cherries", "scissors", "flames", "heart eyes")  # are never given an "a" or an "s"

# What a thing's own colour is called; it is no word for the background.
OWN_COLOURS = {
    "red": ("strawberry", "cherries", "tomato", "crab", "ladybug", "car", "fire engine", "heart", "balloon", "rose",
            "pepper", "mushroom", "book", "umbrella", "telephone", "angry face", "gift", "train", "rocket"),
    "yellow": ("lemon", "banana", "chick", "star", "sun", "cheese", "bell", "sunflower", "bee", "trophy", "crown",
               "smiling face", "light bulb", "bus", "tropical fish", "corn"),
    "green": ("frog", "turtle", "cactus", "broccoli", "clover", "snake", "avocado", "parrot", "seedling", "tree",
              "pine tree", "pear", "tractor"),
    "blue": ("whale", "dolphin", "butterfly", "drop of water", "gem", "snowflake"),
    "orange": ("fox", "tiger face", "basketball", "carrot", "pumpkin"),
    "pink": ("pig face", "cherry blossom", "octopus", "doughnut"),
    "purple": ("eggplant", "grapes", "devil"),
    "white": ("ghost", "snowman", "swan", "rabbit face", "cloud", "skull"),
    "gray": ("elephant", "koala", "robot", "hammer"),
    "brown": ("bear", "owl", "cookie", "monkey face", "bread", "hamburger", "hot dog", "guitar"),
    "black": ("top hat", "penguin", "camera"),
}  # fmt: skip

SIZE_WORDS = {
    "small": ("small", "little", "tiny", "mini", "miniature", "small-sized", "teeny"),
    "medium": ("medium", "medium-sized", "mid-sized", "medium size", "average", "normal-sized", "middle-sized"),
    "big": ("big", "large", "huge", "giant", "enormous", "massive", "oversized", "gigantic"),
}
SIZE_ADVERBS = ("very", "really", "quite", "rather", "pretty")
SIZE_BEHIND = ("{s}", "{s}", "{s}", "{s} size", "in {s}", "size {s}", "size: {s}", "drawn {s}")

PLACE_WORDS = {
    "top left": ("top left", "upper left", "top-left", "upper-left", "left top", "left upper"),
    "top right": ("top right", "upper right", "top-right", "upper-right", "right top", "right upper"),
    "bottom left": ("bottom left", "lower left", "bottom-left", "lower-left", "left bottom", "left lower"),
    "bottom right": ("bottom right", "lower right", "bottom-right", "lower-right", "right bottom", "right lower"),
    "top": ("top",), "bottom": ("bottom",), "left": ("left",), "right": ("right",), "center": ("center",),
}  # fmt: skip
PLACE_PLAIN = ("{p}", "{p}", "at the {p}", "in the {p}")  # said of every place
CORNER_PHRASES = (
    "in the {p} corner", "at the {p} corner", "{p} corner", "in the {p} hand corner", "in the {p}-hand corner",
    "on the {p}", "to the {p}", "near the {p} corner", "in the {p} part", "in {p} corner", "{p} hand corner",
    "in a {p} corner", "into the {p} corner", "towards the {p}", "in the {p} quarter", "corner {p}",
)  # fmt: skip
SPLIT_CORNERS = ("{v} {h}", "{h} {v}", "{v} and {h}", "{v}, {h}")  # a corner from two sides' words
UP_DOWN = {
    "top": ("at the top", "up", "above", "top", "in the upper part", "up high"),
    "bottom": ("at the bottom", "down", "below", "bottom", "in the lower part", "down low"),
}
SIDEWAYS = {
    "left": ("on the left", "left", "to the left", "on the left side", "in the left corner"),
    "right": ("on the right", "right", "to the right", "on the right side", "in the right corner"),
}
SIDE_PHRASES = (
    "on the {p}", "on the {p}", "to the {p}", "on the {p} side", "on the {p} hand side", "on the {p}-hand side",
    "at the {p} side", "{p} side", "at the {p} edge", "on the far {p}", "in the {p} half", "over on the {p}",
    "towards the {p}", "{p}-hand side", "on {p} side", "along the {p} edge", "all the way {p}",
)  # fmt: skip
OTHER_PLACES = {
    "left": SIDE_PHRASES,
    "right": SIDE_PHRASES,
    "top": (
        "on top", "up top", "in the upper part", "at the upper edge", "up", "on the top", "in the top half",
        "upper middle", "top center", "top middle", "at the upper side", "top side", "above", "up above",
        "at the very top", "in the upper half", "upper part", "along the top edge", "upper", "high up",
        "in the middle at the top", "top centre", "at the top in the middle", "upper center",
    ),
    "bottom": (
        "down", "on the bottom", "in the lower part", "at the lower edge", "in the bottom half", "lower middle",
        "bottom center", "bottom middle", "at the lower side", "bottom side", "below", "down below",
        "at the very bottom", "in the lower half", "lower part", "along the bottom edge", "lower", "low down",
        "in the middle at the bottom", "bottom centre", "at the bottom in the middle", "lower center",
    ),
    "center": (
        "centre", "middle", "in the centre", "in the middle", "at the centre", "centered", "right in the middle",
        "in the very middle", "in the exact center", "central", "mid", "dead center", "centred", "right in the center",
    ),
}  # fmt: skip
FRAME_WORDS = (" of the picture", " of the image", " of the page", " of the frame", " of it", " of the canvas")

COLOUR_WORDS = {
    "white": ("white",), "yellow": ("yellow",), "green": ("green",), "blue": ("blue",), "pink": ("pink",),
    "gray": ("gray", "grey", "grey"), "purple": ("purple", "violet", "lilac", "lavender"), "orange": ("orange",),
}  # fmt: skip
COLOUR_ADVERBS = ("light", "bright", "plain", "pale", "solid", "simple", "soft")

LABELS = {
    "thing": ("what", "thing", "object", "motif", "item", "main thing", "who", "content"),
    "size": ("size", "scale", "dimension", "how big", "format"),
    "place": ("place", "where", "location", "spot", "area", "side"),
    "background": ("background", "bg", "backdrop", "background color", "ground", "wall", "paper"),
}
OPENINGS = (
    "draw", "paint", "show me", "show", "give me", "i want", "I'd like", "i would like to see", "can you draw",
    "could you paint", "please draw", "make", "create", "make me", "generate", "a picture of", "an image of",
    "a drawing of", "an icon of", "emoji of", "a sticker with", "there is", "here is", "we see", "picture this:",
    "illustration of", "a photo of", "a cartoon of", "just", "only", "simply", "image with", "a scene with", "i need",
    "let me see", "this is", "it's", "we have", "clipart of", "the picture shows", "in the picture there is", "now",
    "a card with", "hello, draw", "hi, i need", "design", "sketch", "a logo with",
)  # fmt: skip
BACKGROUNDS = (
    "on a {b} background", "on a {b} background", "on {b}", "{b} background", "{b} background", "on {b} background",
    "with a {b} background", "with {b} background", "{b} backdrop", "on a {b} backdrop", "background {b}",
    "background: {b}", "background is {b}", "the background is {b}", "with the background in {b}", "{b} bg", "{b}",
    "in front of {b}", "in front of a {b} wall", "against {b}", "against a {b} background", "over {b}", "{b} behind it",
    "with {b} behind", "on a {b} ground", "on {b} paper", "everything else is {b}", "the rest is {b}",
    "the rest {b}", "make the background {b}", "background should be {b}", "background color {b}", "{b} picture",
    "{b} as background", "using a {b} background", "the backdrop is {b}", "all {b} around", "surrounded by {b}",
    "{b} in the background", "the whole background {b}", "{b} background color", "on a {b} page", "background in {b}",
    "where the background is {b}", "and a {b} background", "and the background is {b}", "and {b} background",
    "behind it {b}", "with {b} all around", "on a plain {b} background", "having a {b} background",
)  # fmt: skip

# Between two things of which no place is said, and how those stand of which it is.
TOGETHER = (
    "and", "and", "and", "with", "plus", "together with", "as well as", "and also", "along with", "&", "+", "and then",
)  # fmt: skip
BESIDE = ("next to", "beside", "alongside", "right next to", "close to", "by the side of", "near")  # in one row
RELATIONS = {
    ("left", "right"): ("left of", "to the left of", "on the left of", "on the left side of", "just left of"),
    ("right", "left"): ("right of", "to the right of", "on the right of", "on the right side of", "just right of"),
    ("top", "bottom"): ("above", "over", "on top of", "higher than", "up above"),
    ("bottom", "top"): ("below", "under", "underneath", "beneath", "down below"),
}  # fmt: skip

WITHOUT = (
    "without {x}", "without {x}", "but no {x}", "no {x}", "not {x}", "and no {x}", "with no {x}", "but without {x}",
    "instead of {x}", "rather than {x}", "and not {x}", "never {x}", "but not {x}", "leave out {x}", "minus {x}",
    "without any {x}", "there is no {x}", "do not draw {x}", "don't draw {x}", "free of {x}",
)  # fmt: skip
WITHOUT_FIRST = ("no {x}, just", "not {x} but", "without {x},", "instead of {x}", "no {x} but", "don't draw {x}, draw")
# What is said to be missing when it is none of the things.
NO_THINGS = (
    "text", "people", "words", "a frame", "shadow", "anything else", "border", "other things", "letters", "watermark",
)  # fmt: skip
CHINESE_WITHOUT = ("，没有{x}", "，不要{x}", "，不画{x}", "，没{x}")

ADJECTIVES = (
    "cute", "lovely", "nice", "beautiful", "pretty", "shiny", "funny", "sweet", "happy", "simple", "colorful", "old",
    "new", "fresh", "juicy", "tasty", "cartoon", "flat", "cool", "fluffy", "friendly", "fancy", "round", "wonderful",
    "typical", "perfect", "real", "plain", "bright", "single", "good", "great", "delicious", "adorable", "smart",
)  # fmt: skip
CLOSINGS = (
    "please", "thanks", "thank you", "for me", "for my daughter", "for my son", "for a birthday card", "nothing else",
    "cartoon style", "flat design", "in emoji style", "high quality", "4k", "vector art", "for my blog", "simple",
    "as a sticker", "clip art", "icon", "illustration", "if you can", "that's all", "very detailed", "minimalist",
    "only that", "and that's it", "in flat style", "for kids", "digital art", "professional", "as an icon", "ok?",
)  # fmt: skip
BEHIND_NOUN = (
    "called {w}", "named {w}", "from {w}", "for {w}", "in {w} style", "with {w}", "like in {w}", "made of {w}",
    "of {w}", "who likes {w}",
)  # fmt: skip
# Words that say nothing here; others are made up of syllables.
UNKNOWN = """
morning yesterday garden teacher window music summer winter paper river mountain kitchen school story village number
water color friend family market street offwinner dream holiday sister brother london paris tommy anna magic
wooden golden silver quiet loud modern ancient famous lucky gentle brave clever hungry sleepy busy early late never
always maybe really just only some every another many few again still already soon today tomorrow walking running
sitting standing waiting looking flying dancing sleeping smiling playing eating about across after
age ago air alone animal answer area arm art away bad base beach began best better bit blood board
body born bottle boy bridge bring build business buy call care carry case catch cause century certain chair chance
change chapter character child church city class clear coffee cold common company complete concert copper
corridor cotton country couple course cover crowd cry cut dark dead deal deep describe desk detail develop dinner
direct distance doctor double dress dry dust each earth east easy effect eight else empty energy english
enough evening event exact example expect eye fact fall far farm fast father fear feel fence field fight
final fine finger five floor follow food foot force foreign foforward four free front full game gate
general glad glass grass group grow guess hall hard heavy hello history hit hope hour human hundred
inch inside inteiron island item join jump kind knee land language laugh law lead lesson let lie
life lift line list local lose love machine main man map mark market mass matter mean meet member metal method mile milk
mind minute miss moment money month move much museum myself name nation nature neck net night north nose note
object ocean offer oil open oven own pack party pass past pay pen phrase piece plan plate
poem point poor possible post power press prproblem product proud pull push question quick quite radio rain reach
read ready reason record result rich ride ring rise road rock roof room rule safe salt sand save science sea search
season seat send sense sentence separate serve seven shape share sheet shine shoe shop short shoulder-street
sight sign silk sing single six skin sky slow smell soft soil soldier son song sound south space special speech spoon
sport spring square stage start state station steel step stone stop store storm straight strange stream strong student
study style sugar suit surprise swim system table tail talk tea team temple ten test thick thin thought thousand three
throw ticket tired tone tool touch tower town track trade travel trip true trust turn twenty uncle understand
unit usual valley value various view visit vowait walk war warm wash watch wave wear weather week weight west wheel
whole wide wife wild wind wine wing wish woman wonder wood word work world write year young
""".split()
# Put between the parts of a caption in place of a sentence, they teach to read those whatever the sentence is.
GLUE = """
is are was be should would could will can may might must it its they them there here where which that who whose this
these you i me we he she of to for from as so too also about around what how when while because if whether though
and or then first second next last finally want like love need see find look get have has let make take give keep hold
wait live stay hang fly sleep come go put add place set show paint fill begin end use try ask tell say think know mean
wish hope imagine someone something somebody everything everywhere all both each one two other another thing things
size place color paper wall page canvas image picture scene idea day time people world please okay well yes
""".split()
GLUE_MARKS = (",", ",", ".", ":", ";", " -", "?", "!", "...")
SYLLABLES = """
ba be bi bo da de di do fa fe fi ga go ha he ka ke ki ko la le li lo ma me mi mo na ne ni no pa pe pi ra re ri ro sa
se si so ta te ti to va vi wa we za zo ber lin ton mar den ris kel dor nan pol
""".split()
