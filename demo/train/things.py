"""What the demo can draw: the name in English and in Chinese, the emoji character, and the icon it is rendered from.

The icons are Microsoft's Fluent Emoji (flat), MIT licence; `icons.py` says where `icons.json` comes from. All are bold
shapes that differ from one another at 64 px.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    """One drawable thing; `name` is how it is called everywhere in this folder."""

    name: str
    chinese: str
    emoji: str
    icon: str


ANIMALS = """
cat face|猫脸|🐱|cat-face
dog face|狗脸|🐶|dog-face
rabbit face|兔脸|🐰|rabbit-face
fox|狐狸|🦊|fox
bear|熊|🐻|bear
panda|熊猫|🐼|panda
koala|考拉|🐨|koala
tiger face|虎脸|🐯|tiger-face
lion|狮子|🦁|lion
cow face|牛脸|🐮|cow-face
pig face|猪脸|🐷|pig-face
frog|青蛙|🐸|frog
monkey face|猴脸|🐵|monkey-face
chick|小鸡|🐤|baby-chick
penguin|企鹅|🐧|penguin
owl|猫头鹰|🦉|owl
parrot|鹦鹉|🦜|parrot
duck|鸭子|🦆|duck
swan|天鹅|🦢|swan
turtle|乌龟|🐢|turtle
snake|蛇|🐍|snake
whale|鲸鱼|🐳|spouting-whale
dolphin|海豚|🐬|dolphin
tropical fish|热带鱼|🐠|tropical-fish
octopus|章鱼|🐙|octopus
crab|螃蟹|🦀|crab
snail|蜗牛|🐌|snail
butterfly|蝴蝶|🦋|butterfly
bee|蜜蜂|🐝|honeybee
ladybug|瓢虫|🐞|lady-beetle
elephant|大象|🐘|elephant
"""
FOOD = """
red apple|红苹果|🍎|red-apple
green apple|青苹果|🍏|green-apple
pear|梨|🍐|pear
lemon|柠檬|🍋|lemon
banana|香蕉|🍌|banana
watermelon|西瓜|🍉|watermelon
grapes|葡萄|🍇|grapes
strawberry|草莓|🍓|strawberry
cherries|樱桃|🍒|cherries
pineapple|菠萝|🍍|pineapple
avocado|牛油果|🥑|avocado
tomato|番茄|🍅|tomato
eggplant|茄子|🍆|eggplant
carrot|胡萝卜|🥕|carrot
corn|玉米|🌽|ear-of-corn
broccoli|西兰花|🥦|broccoli
pepper|辣椒|🌶️|hot-pepper
bread|面包|🍞|bread
cheese|奶酪|🧀|cheese-wedge
hamburger|汉堡|🍔|hamburger
pizza|披萨|🍕|pizza
hot dog|热狗|🌭|hot-dog
fried egg|煎蛋|🍳|cooking
doughnut|甜甜圈|🍩|doughnut
cookie|曲奇|🍪|cookie
cake|蛋糕|🎂|birthday-cake
ice cream|冰淇淋|🍦|soft-ice-cream
"""
PLANTS = """
tree|树|🌳|deciduous-tree
pine tree|松树|🌲|evergreen-tree
palm tree|棕榈树|🌴|palm-tree
cactus|仙人掌|🌵|cactus
sunflower|向日葵|🌻|sunflower
tulip|郁金香|🌷|tulip
rose|玫瑰|🌹|rose
cherry blossom|樱花|🌸|cherry-blossom
clover|四叶草|🍀|four-leaf-clover
maple leaf|枫叶|🍁|maple-leaf
mushroom|蘑菇|🍄|mushroom
seedling|幼苗|🌱|seedling
"""
VEHICLES = """
car|汽车|🚗|automobile
bus|公交车|🚌|bus
fire engine|消防车|🚒|fire-engine
tractor|拖拉机|🚜|tractor
train|火车|🚂|locomotive
airplane|飞机|✈️|airplane
helicopter|直升机|🚁|helicopter
rocket|火箭|🚀|rocket
flying saucer|飞碟|🛸|flying-saucer
sailboat|帆船|⛵|sailboat
"""
OBJECTS = """
heart|红心|❤️|red-heart
star|星星|⭐|star
sun|太阳|☀️|sun
moon|月亮|🌙|crescent-moon
rainbow|彩虹|🌈|rainbow
cloud|云|☁️|cloud
snowflake|雪花|❄️|snowflake
fire|火|🔥|fire
drop of water|水滴|💧|droplet
house|房子|🏠|house
castle|城堡|🏰|castle
tent|帐篷|⛺|tent
umbrella|雨伞|☂️|umbrella
crown|皇冠|👑|crown
top hat|礼帽|🎩|top-hat
gem|宝石|💎|gem-stone
key|钥匙|🔑|key
lock|锁|🔒|locked
bell|铃铛|🔔|bell
gift|礼物|🎁|wrapped-gift
balloon|气球|🎈|balloon
trophy|奖杯|🏆|trophy
soccer ball|足球|⚽|soccer-ball
basketball|篮球|🏀|basketball
guitar|吉他|🎸|guitar
camera|相机|📷|camera
telephone|电话|☎️|telephone
television|电视|📺|television
alarm clock|闹钟|⏰|alarm-clock
light bulb|灯泡|💡|light-bulb
book|书|📕|closed-book
scissors|剪刀|✂️|scissors
hammer|锤子|🔨|hammer
anchor|锚|⚓|anchor
red envelope|红包|🧧|red-envelope
"""
FACES = """
smiling face|笑脸|😀|grinning-face
heart eyes face|花痴脸|😍|smiling-face-with-heart-eyes
sunglasses face|墨镜脸|😎|smiling-face-with-sunglasses
crying face|大哭脸|😭|loudly-crying-face
angry face|生气脸|😡|pouting-face
clown|小丑|🤡|clown-face
robot|机器人|🤖|robot
alien|外星人|👽|alien
ghost|幽灵|👻|ghost
skull|骷髅|💀|skull
pumpkin|南瓜灯|🎃|jack-o-lantern
snowman|雪人|⛄|snowman
devil|小恶魔|😈|smiling-face-with-horns
"""
KINDS = {
    kind: tuple(Thing(*line.split("|")) for line in table.split("\n") if line)
    for kind, table in (
        ("animals", ANIMALS), ("food", FOOD), ("plants", PLANTS), ("vehicles", VEHICLES), ("objects", OBJECTS),
        ("faces", FACES),
    )
}  # fmt: skip
THINGS = {thing.name: thing for things in KINDS.values() for thing in things}
